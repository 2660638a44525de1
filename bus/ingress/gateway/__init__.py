"""The HTTP way in: CloudEvents over HTTP, answered when the broker has stored them.

python -m bus.ingress.gateway --nats-url nats://127.0.0.1:4222 --port 8080 --token-file token
"""
