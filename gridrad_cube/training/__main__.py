"""``python -m gridrad_cube.training``: for torchrun where only the package is installed."""

from gridrad_cube.training.flags import main

if __name__ == "__main__":
    raise SystemExit(main(prog="python -m gridrad_cube.training"))
