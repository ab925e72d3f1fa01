"""`kubectl lorafleet`: what people ask of a fleet, answered from what the API server shows them."""
