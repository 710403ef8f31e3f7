"Did it work: comparison with models that never saw the samples."
