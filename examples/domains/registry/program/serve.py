"""Knows how many beds each ward has, and says so to whoever may ask; a last word ends it."""

import socket

BEDS = {"north": 12, "south": 7, "west": 31}

with socket.create_server(("127.0.0.1", 8000)) as server:
    print("answering", flush=True)
    question = ""
    while question != "thanks":
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as lines:
            question = lines.readline().strip()
            answer = BEDS.get(question, 0)
            print(f"asked about {question}: {answer}", flush=True)
            lines.write(f"{answer}\n")
            lines.flush()
