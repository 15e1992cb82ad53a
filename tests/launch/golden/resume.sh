# Show the log of the running experiment until it ends.
gcloud compute tpus tpu-vm ssh pod --worker=0 '--command=bash prelu_jax/launch/tpu_worker.sh follow' --zone=us-central2-b --project=lab --quiet
# If none runs, or it ended with a status that is not final:
# Start the experiment on every worker.
gcloud compute tpus tpu-vm ssh pod --worker=all '--command=bash prelu_jax/launch/tpu_worker.sh start experiments.convergence_22 --scale=imagenet --workdir=/mnt/share/run --distributed || exit 65' --zone=us-central2-b --project=lab --quiet
# Show its log until it ends.
gcloud compute tpus tpu-vm ssh pod --worker=0 '--command=bash prelu_jax/launch/tpu_worker.sh follow' --zone=us-central2-b --project=lab --quiet
# After a status that is not final: from start on; if the pod is lost: from describe on.
