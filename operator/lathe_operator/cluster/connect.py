"""A connection to the API server: the pod's own account, or a kubeconfig."""

import os

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration


async def connect() -> ApiClient:
    """By the service account of the pod; outside of a cluster by `$KUBECONFIG` or the user's own.

    Raises:
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    # Errors are told apart by the caller, and a request that is repeated here would hold up its key.
    configuration.retries = 0
    return ApiClient(configuration)
