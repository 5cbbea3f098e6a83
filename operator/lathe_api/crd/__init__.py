"""CustomResourceDefinitions, generated from the API's models: `python -m lathe_api.crd FOLDER` writes them."""
