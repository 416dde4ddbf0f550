"""A run as Kubernetes objects: the cluster's description, and the manifests from it and the run's configuration.

Objects are plain mappings, written as YAML; nothing is put together from text, and no shell runs in a pod.
"""
