"""HTTP for all endpoints: bodies, content negotiation, problem documents, disconnects."""
