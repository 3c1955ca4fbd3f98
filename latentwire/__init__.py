"""Which embeddings can a frozen language model read?"""

__version__ = "0.1.0"
