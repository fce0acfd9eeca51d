"""`python -m posology.cli`."""

from posology.cli import main

main()
