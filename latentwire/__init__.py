"""Which embeddings can a frozen language model read?"""

from latentwire.harness import __version__ as __version__
