"""BERT and the families built like it: each sublayer's sum with its input is normalised."""

from surgeon.architectures.shared import POST_NORM
from surgeon.core.structure import Family

FAMILY = Family(
    model_types=(
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "git",
        "rembert",
        "roberta",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "distilbert",
        "albert",
        "mobilebert",
        "openai-gpt",
        "xlm",
        "xlnet",
        "xmod",
        "prophetnet",
    ),
    no_identity=POST_NORM,
)
