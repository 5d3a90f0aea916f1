"""hfgen: train, measure and share generative models of images on the Hugging Face stack."""

__version__ = "0.1.0"
