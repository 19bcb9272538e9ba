"""The shared library: the methods of deep-learning theory papers and what they predict, one package each."""
