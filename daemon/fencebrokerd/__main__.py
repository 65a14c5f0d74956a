"""``python -m fencebrokerd``."""

from fencebrokerd.keeper import main

if __name__ == "__main__":
    main()
