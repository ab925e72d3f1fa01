"""What every program of lorafleet needs once. Nothing here knows an operator, a gateway or a pod."""
