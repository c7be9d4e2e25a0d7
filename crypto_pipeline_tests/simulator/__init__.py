"""Tests of the exchange simulator, with genuine ccxt classes over real sockets."""
