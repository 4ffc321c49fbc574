"""BERT and the families built like it: each sublayer's sum with its input is normalised."""

from surgeon.architectures.shared import POST_NORM
from surgeon.core.structure.structure import Family

FAMILIES = (
    Family(
        model_types=("xlm", "flaubert"),
        no_identity=POST_NORM,
        unreadable=(
            "n_layers",
            "counts layers whose parts lie in four lists (attentions, layer_norm1, ffns, layer_norm2), "
            "of which none holds a whole layer",
        ),
    ),
    Family(
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
            "xlnet",
            "xmod",
            "prophetnet",
        ),
        no_identity=POST_NORM,
    ),
)
