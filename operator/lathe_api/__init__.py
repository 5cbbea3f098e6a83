"""The contract between Lathe's rooms: documents, artifact manifests, run summaries. Imports nothing of ours."""
