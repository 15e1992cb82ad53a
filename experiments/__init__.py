"""One module per result of the papers; each ends in claims."""

from prelu_jax import extras

if extras.is_starting_command():
    extras.check_command(
        "the package experiments",
        "train",
        *("PIL", "cv2", "grain", "markdown_it", "matplotlib", "ml_collections", "optax", "orbax"),
        *("sklearn", "tensorboardX", "threadpoolctl", "tqdm"),
    )
