// Hidden states of every token over Ollama's API, line by line, with nothing but Node's own fetch (18 or later).
//
//     loom-gguf serve &
//     node hidden_states.mjs [http://localhost:11434]

const address = process.argv[2] ?? 'http://localhost:11434'

// Float32Array of a record's numbers, however they were compressed.
function values({ data, compression }) {
  const bytes = Buffer.from(data, 'base64')
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const read = {
    none: { size: 4, at: (i) => view.getFloat32(i, true) },
    float16: { size: 2, at: (i) => half(view.getUint16(i, true)) },
  }[compression] // int8 has a `scale` besides
  return Float32Array.from({ length: bytes.length / read.size }, (_, i) => read.at(i * read.size))
}

// A float16 from its bits; DataView has getFloat16 only in newer versions.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 0x1f
  const fraction = bits & 0x3ff
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction ? NaN : sign * Infinity
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

// Objects of an answer in NDJSON, as they come.
async function* lines(response) {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const piece of response.body) {
    const whole = (rest + decoder.decode(piece, { stream: true })).split('\n')
    rest = whole.pop()
    for (const line of whole) if (line) yield JSON.parse(line)
  }
}

async function generate(compression) {
  const response = await fetch(`${address}/api/generate`, {
    method: 'POST',
    body: JSON.stringify({
      model: 'demo',
      prompt: 'One morning a fox',
      raw: true, // to be gone on with as it is, without the chat template
      options: { temperature: 0, num_predict: 6 },
      expose_hidden: { layers: [0, 7], compression, encoding: 'base64' },
    }),
  })
  if (!response.ok) throw new Error((await response.json()).error)
  for await (const line of lines(response)) {
    if (line.error) throw new Error(line.error) // after the first line, an error is a line too
    const lengths = (line.hidden_states ?? []).map((record) => {
      const row = values(record)
      return `${record.node} ${row.length} values, length ${Math.hypot(...row).toFixed(2)}`
    })
    if (lengths.length) console.log(`${JSON.stringify(line.response).padEnd(12)} ${lengths.join('; ')}`)
    if (line.done) console.log(`${line.eval_count} tokens, ${line.done_reason}, as ${compression}`)
  }
}

try {
  await generate('float16')
  await generate('none')
} catch (error) {
  console.error(error.cause?.message ?? error.message)
  process.exitCode = 1
}
