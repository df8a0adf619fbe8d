"""HTTP for all endpoints: request bodies, content negotiation, problem documents, disconnects."""
