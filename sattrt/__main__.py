"""`python -m sattrt`, the form that torchrun takes."""

from .cli import main

main()
