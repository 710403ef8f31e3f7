import warnings

__version__ = "0.1.0"

# torch 2.14 and later say this of torchvision's and fastai's own code, to everyone who imports them.
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
# pandas 3 hands out read-only arrays; fastai's tables make tensors of them and only read those.
warnings.filterwarnings('ignore', message='The given NumPy array is not writable', category=UserWarning)
# Optuna's progress bar says this of notebooks without ipywidgets; ours is fastprogress's.
warnings.filterwarnings('ignore', message='IProgress not found')
