"""Image data: sources, decoding and cropping on the host, augmentation on the device."""

from prelu_jax import extras

# A file of a few kilobytes may decode to gigabytes. 100 megapixels are 300 MB.
MAX_PIXELS = 100_000_000

if extras.is_starting_command():
    extras.check_command("prelu_jax.data", "data", "PIL", "cv2", "grain", "tqdm")
