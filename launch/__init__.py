"""Starting experiments: on this machine, on a cluster, on a pod."""
