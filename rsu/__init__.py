import warnings

__version__ = "0.1.0"

# torch 2.14 and later say this of torchvision's and fastai's own code, to everyone who imports them.
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
