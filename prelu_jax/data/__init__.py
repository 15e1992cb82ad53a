"""Image data: sources, decoding and cropping on the host, augmentation on the device."""

# A file of a few kilobytes may decode to gigabytes. 100 megapixels are 300 MB.
MAX_PIXELS = 100_000_000
