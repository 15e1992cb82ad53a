# Delete the pod and its machines.
gcloud compute tpus queued-resources delete pod --force --zone=us-central2-b --project=lab --quiet
