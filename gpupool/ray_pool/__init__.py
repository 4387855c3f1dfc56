"""The same pool on Ray: Ray Serve places, starts, routes to and replaces the replicas, and each of
them answers with the application, the gate and the engines that a worker of gunicorn has.

docs/ray.md says what runs where. Nothing but `preflight` is imported by a pool of gunicorn's.
"""
