"""Training: ``python -m cfx_lib.train NAME`` makes the shipped ``data/weights/NAME`` again, ``python -m cfx_lib.train ddpm
--folder PATH --out DIR`` a denoiser for images of one's own."""
