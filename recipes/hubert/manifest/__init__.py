"""Audio folders or archives to manifests: finds and measures the audio, divides it into train and valid."""
