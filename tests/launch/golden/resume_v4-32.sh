# Its log, until it ends.
gcloud compute tpus tpu-vm ssh pod --worker=0 '--command=bash prelu_jax/launch/tpu_worker.sh follow' --zone=us-central2-b --project=lab --quiet
# After a status that is not final: start again; lost, from describe on.
