"""The Lathe runtime: a CPU model server for the Open Inference Protocol V2, HTTP/1.1 and gRPC.

`python -m lathe_runtimes.server --repository DIR --http-port N --grpc-port N`
"""
