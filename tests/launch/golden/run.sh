# If the state is ACTIVE, the pod is not created.
gcloud compute tpus queued-resources describe pod '--format=value(state.state)' --zone=us-central2-b --project=lab --quiet
# A pod that is FAILED or SUSPENDED is deleted first.
gcloud compute tpus queued-resources create pod --node-id=pod --accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base --spot --zone=us-central2-b --project=lab --quiet
# Repeated until the state is ACTIVE.
gcloud compute tpus queued-resources describe pod '--format=value(state.state)' --zone=us-central2-b --project=lab --quiet
# Install the package on every worker.
mkdir -p runs
git archive --prefix=prelu_jax/ --output=runs/pod.tar.gz HEAD
gcloud compute tpus tpu-vm scp runs/pod.tar.gz pod:prelu_jax.tar.gz --worker=all --zone=us-central2-b --project=lab --quiet
gcloud compute tpus tpu-vm ssh pod --worker=all '--command=tar -xzf prelu_jax.tar.gz && bash prelu_jax/launch/tpu_worker.sh install || exit 65' --zone=us-central2-b --project=lab --quiet
gcloud compute tpus tpu-vm ssh pod --worker=all '--command=( mountpoint -q /mnt/share || sudo mount /mnt/share ) || exit 65' --zone=us-central2-b --project=lab --quiet
# Start the experiment on every worker.
gcloud compute tpus tpu-vm ssh pod --worker=all '--command=bash prelu_jax/launch/tpu_worker.sh start experiments.convergence_22 --scale=imagenet --workdir=/mnt/share/run --distributed || exit 65' --zone=us-central2-b --project=lab --quiet
# Show its log until it ends.
gcloud compute tpus tpu-vm ssh pod --worker=0 '--command=bash prelu_jax/launch/tpu_worker.sh follow' --zone=us-central2-b --project=lab --quiet
# After a status that is not final: from start on; if the pod is lost: from describe on.
