"""What several tests share: networks, documents, crafted files."""
