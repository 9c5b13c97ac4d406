"""Training of the shipped models: ``python -m cfx_lib.train NAME`` makes ``data/weights/NAME`` again."""
