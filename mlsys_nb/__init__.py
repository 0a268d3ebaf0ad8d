"A production machine-learning system written, run and watched in notebooks."

__version__ = "0.1.0"
