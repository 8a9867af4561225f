"""Mounts in a network namespace of its own, looks at names, and records what the mount asks the network.

    unshare --net --mount --pid --fork --kill-child --mount-proc -- python3 offline.py PLAN.json

In the plan: `command`, which mounts at `at` and says so; `network`, whether there is one, on which every host is
this one; `quiet` and `loud`, names that are looked up one after the other; `copies`, pairs for `cp -a`. Prints
what came of it.
"""
import errno, json, os, socket, struct, subprocess, sys, tempfile, threading, time

plan = json.load(open(sys.argv[1]))
asked = []


def answer(packet):
    """The name that is asked for, and an answer: 127.0.0.1 for A, nothing for all else."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1:at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    kind = struct.unpack(">H", packet[at + 1:at + 3])[0]
    found = kind == 1
    head = packet[:2] + struct.pack(">HHHHH", 0x8180, 1, found, 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + bytes([127, 0, 0, 1]) if found else b""
    return ".".join(labels), head + packet[12:at + 5] + record


def record_names(server):
    while True:
        packet, client = server.recvfrom(2000)
        name, reply = answer(packet)
        asked.append("name " + name)
        server.sendto(reply, client)


def record_connections(server):
    while True:
        connection, _ = server.accept()
        asked.append("connection to port %d" % server.getsockname()[1])
        connection.close()


def record():
    """One interface, one server of names, and listeners where registries would be."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    threading.Thread(target=record_names, args=[names], daemon=True).start()
    for port in [80, 443, 5000]:
        server = socket.create_server(("0.0.0.0", port))
        threading.Thread(target=record_connections, args=[server], daemon=True).start()


def look(name):
    try:
        with open(os.path.join(plan["at"], name), "rb") as file:
            file.read()
        return "read"
    except OSError as error:
        return errno.errorcode[error.errno]


subprocess.run(["mount", "--make-rprivate", "/"], check=True)
if plan["network"]:
    record()
mount = subprocess.Popen(plan["command"], stdout=subprocess.PIPE, text=True)
if "is mounted at" not in mount.stdout.readline():
    sys.exit("it has not mounted: %s" % mount.wait())
report = {"quiet": {name: look(name) for name in plan["quiet"]}}
report["listed"] = os.listdir(plan["at"])
for source, target in plan["copies"]:
    subprocess.run(["cp", "-a", os.path.join(plan["at"], source), target], check=True)
# What was sent has arrived by now.
time.sleep(0.3)
report["asked_for_quiet"] = list(asked)
report["loud"] = {name: look(name) for name in plan["loud"]}
report["asked"] = list(asked)
mount.terminate()
report["status"] = mount.wait(timeout=20)
print(json.dumps(report))
