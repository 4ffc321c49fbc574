"""Proof of an export and of an adapter: reloaded with plain transformers and PEFT, compared with the live model.

May import `model`.
A new check goes to `export_proof` or `adapter_proof`; what checks share to `checks`.
"""
