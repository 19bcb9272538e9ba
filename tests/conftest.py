"""One thread for all arithmetic, as in a worker: the variables are read when torch and NumPy are imported."""

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
