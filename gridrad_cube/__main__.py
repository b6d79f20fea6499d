"""``python -m gridrad_cube``."""

from gridrad_cube.cli import main

if __name__ == "__main__":
    main()
