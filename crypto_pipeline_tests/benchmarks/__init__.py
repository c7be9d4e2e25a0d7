"""What takes minutes or needs a quiet machine; `make bench` and `make soak`, never `make test`."""
