"""How a model answers: items to token requests, requests to a plan, a plan to log-likelihoods."""
