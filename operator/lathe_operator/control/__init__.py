"""Watches, queue and reconcile loop."""
