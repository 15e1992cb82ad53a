"""Image data: where it comes from, how it becomes batches, what the device does to it."""

# A file of a few kilobytes may decode to gigabytes. 100 megapixels are 300 MB.
MAX_PIXELS = 100_000_000
