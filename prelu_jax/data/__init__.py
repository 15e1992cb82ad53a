"""Image data: where it comes from, how it becomes batches, what the device does to it."""
