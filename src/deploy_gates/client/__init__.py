"""What a service asks which config to use: from memory, kept up to date in the background.

client = ConfigClient("postgresql://…/gates", environment="production")
config = client.get("ticket-triage", key=organization_id)
with config.call() as call:
    call.record(openai.chat.completions.create(**config.request(subject=subject, body=body)))
"""

from deploy_gates.client.client import ConfigClient
from deploy_gates.client.config import Config

__all__ = ["Config", "ConfigClient"]
