"""`python -m sattrt`, the form that torchrun takes."""

from .cli import main

if __name__ == "__main__":
    main()
