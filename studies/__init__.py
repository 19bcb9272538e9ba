"""The studies: one module or package per paper. Each declares its trials, its claims and its figures, and runs nothing."""
