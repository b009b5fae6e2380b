"""Files that would do harm if they were loaded, made by our own code after the public advisories.

Sources of the ideas: the advisories of picklescan, fickling and modelscan (hidden globals, opcodes that call, modules
that were not on a list), of torch (`torch.load`, `torch.package`, TorchScript, `.pt2`), of zip (two members of one
name, headers that disagree, wrong CRCs, compressed members), of onnx (external data). Payloads only touch a marker.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

# What a payload calls. Its argument is a shell command, Python code or a path.
CALLS = (
    "os.system", "posix.system", "nt.system", "os.popen", "os.execvp", "os.unlink", "os.open", "pty.spawn",
    "subprocess.Popen", "subprocess.call", "subprocess.run", "subprocess.check_output", "subprocess.getoutput",
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.open",
    "builtins.getattr", "__builtin__.eval", "__builtin__.execfile", "runpy.run_path", "runpy._run_code",
    "importlib.import_module", "importlib.util.spec_from_file_location", "imp.load_source", "shutil.rmtree",
    "shutil.copyfile", "socket.socket", "socket.create_connection", "http.client.HTTPConnection",
    "urllib.request.urlopen", "urllib.request.urlretrieve", "webbrowser.open", "ctypes.CDLL",
    "multiprocessing.util.spawnv_passfds", "asyncio.unix_events._UnixSubprocessTransport",
    "code.InteractiveInterpreter", "codeop.compile_command", "timeit.timeit", "timeit.main", "trace.Trace",
    "cProfile.run", "cProfile.runctx", "profile.run", "profile.Profile.runctx", "pdb.run", "pdb.Pdb", "bdb.Bdb.run",
    "doctest.debug_script", "pydoc.pipepager", "pydoc.locate", "idlelib.pyshell.ModifiedInterpreter.runcommand",
    "idlelib.autocomplete.AutoComplete.get_entity", "lib2to3.pgen2.grammar.Grammar.loads", "venv.create",
    "zipimport.zipimporter", "pip.main", "pip._internal.main", "ensurepip._run_pip",
    "distutils.file_util.write_file", "logging.config.listen", "operator.attrgetter", "operator.methodcaller",
    "functools.partial", "functools.reduce", "types.FunctionType", "types.CodeType", "marshal.loads",
    "pickle.loads", "pickle.load", "_pickle.loads", "dill.loads", "joblib.load", "cloudpickle.loads",
    "pandas.read_pickle", "numpy.load", "numpy.testing._private.utils.runstring",
    "numpy.f2py.crackfortran.getlincoef", "torch.load", "torch.hub.load", "torch.hub.load_state_dict_from_url",
    "torch.jit.load", "torch.package.PackageImporter", "torch.utils.cpp_extension.load_inline",
    "torch.utils._config_module.ConfigModule.load_config", "torch.utils.bottleneck.__main__.run_cprofile",
    "torch.utils.collect_env.run", "torch.utils.data.datapipes.utils.decoder.basichandlers",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
    "torch.jit.unsupported_tensor_ops.execWrapper", "torch._dynamo.guards.GuardBuilder.get",
    "torch._inductor.codecache.compile_file", "torch.distributed.rpc.init_rpc", "torch.serialization.load",
    "torch._C._jit_compile", "torch.nn.Module.load_state_dict", "torch._utils._rebuild_tensor_v2 ",
    "sys.setprofile", "sys.modules", "atexit.register", "signal.signal", "threading.Thread",
    "ssl.get_server_certificate", "smtplib.SMTP", "ftplib.FTP", "telnetlib.Telnet", "xmlrpc.client.ServerProxy",
    "sqlite3.connect", "tempfile.mkstemp",
)  # fmt: skip
TENSOR_CALL = b"ctorch._utils\n_rebuild_tensor_v2\n"


@dataclass(frozen=True, slots=True)
class Hostile:
    """A file: `reason` is what has to be found in the globals or reasons, or "" if it has to be refused."""

    name: str
    data: bytes
    reason: str = ""


def corpus(marker: str) -> Iterator[Hostile]:
    """All of them; `marker` is the path that none may touch."""
    command = f"touch {marker}"
    for index, call in enumerate(CALLS):
        module, _, name = call.rpartition(".")
        protocol, way = index % 6, ("reduce", "inst", "object", "stacked", "new", "build")[index % 6]
        body = payload(module, name, command, way)
        plain = b"" if way in ("inst", "object") and protocol < 2 else bytes([0x80, max(2, protocol)])
        yield Hostile(f"{call} {way}", plain + body + b".", call.strip())
        if index % 2:
            yield Hostile(f"{call} in a state dict.pt", torch_zip(plain + dict_with(body) + b"."), call.strip())
        else:
            yield Hostile(
                f"{call} before the state dict.pth",
                torch_zip(plain + body + b"0" + dict_with(b"N") + b"."),
                call.strip(),
            )
    yield from _opcodes(command)
    yield from _archives(command)
    yield from _others(command)


def payload(module: str, name: str, argument: str, way: str) -> bytes:
    """Opcodes that leave the result of `module.name(argument)` on the stack, each way in which pickles can call."""
    text = b"X" + struct.pack("<I", len(argument)) + argument.encode()
    line = f"{module}\n{name}\n".encode()
    short = b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
    return {
        "reduce": b"c" + line + text + b"\x85R",
        "inst": b"(" + text + b"i" + line,
        "object": b"(c" + line + text + b"o",
        "stacked": short + text + b"\x85R",
        "new": b"c" + line + text + b"\x85\x81",
        "build": b"c" + line + b")R}" + text + b"Nsb",
    }[way]


def dict_with(body: bytes) -> bytes:
    return b"}X\x01\0\0\0w" + body + b"s"


def torch_zip(
    pickled: bytes, *more: tuple[str, bytes], name: str = "archive", packed: int = zipfile.ZIP_STORED
) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packed) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for member, data in ((f"{name}/data.pkl", pickled), (f"{name}/version", b"3\n"), *more):
            archive.writestr(zipfile.ZipInfo(member), data, packed)
    return out.getvalue()


def _opcodes(command: str) -> Iterator[Hostile]:
    harm = payload("os", "system", command, "reduce")
    head = b"\x80\x04"
    nested = pickle.dumps(b"\x80\x02" + harm + b".")[2:-1]
    yield Hostile("nested pickle", head + b"cpickle\nloads\n" + nested + b"\x85R.", "pickle.loads")
    yield Hostile("in the memo only", head + b"cos\nsystem\nq\x000N.", "os.system")
    yield Hostile("popped", head + harm + b"0N.", "os.system")
    yield Hostile("as a key", head + b"}" + harm + b"Ns.", "os.system")
    yield Hostile("in a tuple's depth", head + b"(" * 60 + harm + b"t" * 60 + b".", "os.system")
    yield Hostile("in a set", head + b"\x8f(" + harm + b"\x90.", "os.system")
    yield Hostile("in a frozen set", head + b"(" + harm + b"\x91.", "os.system")
    yield Hostile("as a state", head + b"ccollections\nOrderedDict\n)R}X\1\0\0\0a" + harm + b"sb.", "os.system")
    yield Hostile("after the end", head + b"N." + harm + b".")
    yield Hostile("a second pickle", head + b"N." + head + harm + b".")
    yield Hostile("broken behind the call", head + harm + b"\xff")
    yield Hostile("without an end", head + harm)
    yield Hostile("extension registry", head + b"\x82\x01" + b")R.")
    yield Hostile("extension registry, 4 bytes", head + b"\x84\x01\0\0\0.")
    yield Hostile("persistent id", head + harm + b"Q.")
    yield Hostile("persistent id as text", b"Pos.system\n.")
    yield Hostile("out-of-band buffer", b"\x80\x05\x97.")
    yield Hostile("protocol 6", b"\x80\x06" + harm + b".")
    yield Hostile(
        "names from the memo", head + b"\x8c\x02os\x94\x8c\x06system\x94h\0h\1\x93X\1\0\0\0a\x85R.", "os.system"
    )
    yield Hostile("names made of parts", head + b"cbuiltins\ngetattr\ncos\npath\nX\1\0\0\0x\x86R.", "builtins.getattr")
    yield Hostile("a call of a result", head + harm + b")R.", "os.system")
    yield Hostile("Python 2 text", b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.", "os.system")
    yield Hostile("protocol 0 text", b"cos\nsystem\n(V" + command.encode() + b"\ntR.", "os.system")
    yield Hostile("control characters in a name", head + b"cos\n\x1b[2Jsystem\n)R.")
    yield Hostile("a name with a space", head + b"ctorch._utils \n_rebuild_tensor_v2\n)R.", "torch._utils ._rebuild")
    yield Hostile("a longer safe name", head + b"ctorch\nFloatStorageX\n)R.", "torch.FloatStorageX")
    yield Hostile("a safe name elsewhere", head + b"ccollections.abc\nOrderedDict\n)R.", "collections.abc.OrderedDict")
    yield Hostile("a tensor as a function", head + TENSOR_CALL + b")R.")
    yield Hostile("a dotted name", head + b"\x8c\x05torch\x8c\x0fhub.os.system.x\x93)R.", "torch.hub.os.system.x")
    yield Hostile("the machine's own names", head + b"czero_convert.cli\nmain\n)R.", "zero_convert.cli.main")


def _archives(command: str) -> Iterator[Hostile]:
    harm = b"\x80\x02" + payload("os", "system", command, "reduce") + b"."
    calm = b"\x80\x02}."
    good, bad = torch_zip(calm), torch_zip(harm)
    yield Hostile("two pickles of one name", torch_zip(calm, ("archive/data.pkl", harm)))
    yield Hostile("two pickles, other case", torch_zip(calm, ("archive/DATA.PKL", harm)))
    yield Hostile("a second folder", torch_zip(calm, ("other/data.pkl", harm)))
    yield Hostile("an archive before the archive", bad + good)
    yield Hostile("a pickle before the archive", harm + good)
    yield Hostile("bytes behind the archive", good + harm)
    yield Hostile("compressed pickle", torch_zip(harm, packed=zipfile.ZIP_DEFLATED))
    yield Hostile("code beside", torch_zip(calm, ("archive/code/run.py", b"import os")), "code/run.py")
    yield Hostile("a pickle beside", torch_zip(calm, ("archive/extra.pkl", harm)), "extra.pkl")
    yield Hostile("a path that leads out", torch_zip(calm, ("archive/../../x", harm)))
    yield Hostile("an absolute path", torch_zip(calm, ("/etc/x", harm)))
    yield Hostile("a drive", torch_zip(calm, ("C:/x", harm)))
    local = bytearray(bad)
    local[30:46] = b"archive/datb.pkl"
    yield Hostile("another local name", bytes(local))
    flags = bytearray(bad)
    flags[6] |= 1
    yield Hostile("encrypted in one header", bytes(flags))
    crc = bytearray(bad)
    crc[14] ^= 1
    yield Hostile("another CRC in one header", bytes(crc))
    pickled = bytearray(bad)
    pickled[bad.index(b"touch")] ^= 1
    yield Hostile("a wrong CRC", bytes(pickled))
    end = bad.rindex(b"PK\x05\x06")
    yield Hostile("a comment with an archive", bad[: end + 20] + struct.pack("<H", len(good)) + good)
    yield Hostile("no folder", torch_zip(harm, name="").replace(b"/data.pkl", b"xdata.pkl"))
    record = ("p/.data/extern_modules", b"os"), ("p/.data/python_version", b"3.11"), ("p/model.py", b"import os")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, data in record:
            archive.writestr(member, data)
    yield Hostile("torch.package", out.getvalue())
    yield Hostile("TorchScript", torch_zip(calm, ("archive/constants.pkl", b"\x80\x02).")), "it is a program")
    yield Hostile("TorchScript constants", torch_zip(calm, ("archive/constants.pkl", harm)), "os.system")
    for member, reason in (
        ("archive/data/sample_inputs/model.pt", "os.system"),
        ("archive/data/weights/custom_obj_0", "custom_obj_0"),
        ("archive/data/aotinductor/model/lib.so", "lib.so"),
    ):
        data = torch_zip(harm) if member.endswith(".pt") else harm
        content = torch_zip(calm, ("archive/archive_format", b"pt2"), (member, data))
        yield Hostile(f".pt2 with {member.rpartition('/')[2]}", content, reason)
    config = b'{"config":{"w":{"path_name":"weight_0","is_param":true,"use_pickle":true,"tensor_meta":null}}}'
    members = [
        ("archive/archive_format", b"pt2"),
        ("archive/data/weights/weight_0", harm),
        ("archive/data/weights/m_weights_config.json", config),
    ]
    yield Hostile(".pt2 with a pickled weight", torch_zip(calm, *members), "is a pickle")
    old = torch_zip(harm)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "8.1")
        archive.writestr("serialized_state_dict.pt", old)
    yield Hostile("old .pt2", content.getvalue(), "os.system")


def _others(command: str) -> Iterator[Hostile]:
    harm = b"\x80\x02" + payload("os", "system", command, "reduce") + b"."
    for name in ("model.safetensors", "model.onnx", "model.gguf", "model.json", "model.h5"):
        yield Hostile(f"a pickle called {name}", harm, "os.system")
        yield Hostile(f"an archive called {name}", torch_zip(harm), "os.system")
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    system = b"\x80\x02}X\r\0\0\0little_endian\x88s."
    yield Hostile("legacy", magic + system + harm + b"\x80\x02].", "os.system")
    yield Hostile("legacy, machine facts", magic + harm + b"\x80\x02}.\x80\x02].")
    yield Hostile("legacy, keys", magic + system + b"\x80\x02}." + harm)
    yield Hostile("legacy, instead of the magic number", harm + system, "")
    header = b'{"__metadata__":{"x":"' + b"\\u001b]0;title\\u0007" + b'"}}'
    header += b" " * (-len(header) % 8)
    yield Hostile("terminal escapes in metadata", len(header).to_bytes(8, "little") + header, "-")
