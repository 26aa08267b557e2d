// Which of the files that are given are one volume: a DICOM series, or an export of HEYEX with its pictures. No library.

const HEADER = 1 << 18; // of a DICOM file, before its pixels
const LONG = ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"];
const IMPLICIT = "1.2.840.10008.1.2";
const OTHERS = ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]; // big endian, deflated
const most = 64 << 20; // of an XML that is looked into

// Files in groups, in the order given: [file] alone, or all files of a volume. The server looks at them again.
export async function grouped(files) {
  const groups = [];
  const exported = await ofExports(files);
  const series = new Map();
  for (const file of files) {
    if (exported.has(file)) {
      const own = exported.get(file);
      if (!groups.includes(own)) groups.push(own);
      continue;
    }
    const key = await seriesOf(file);
    if (key && series.has(key)) {
      series.get(key).push(file);
      continue;
    }
    const group = [file];
    if (key) series.set(key, group);
    groups.push(group);
  }
  return groups;
}

// What a group is called (an export by its XML), how large it is, and what is sent of it.
const stands = (file) => /\.xml$/i.test(file.name);
export const titleOf = (group) => (group.length === 1 || stands(group[0]) ? group[0].name : `${group[0].name} and ${group.length - 1} more`);
export const sizeOf = (group) => group.reduce((sum, file) => sum + file.size, 0);
export function bodyOf(group) {
  if (group.length === 1) return group[0];
  const form = new FormData();
  for (const file of group) form.append("file", file, file.name);
  return form;
}

// Each file of an export, to the XML and the pictures that it names.
async function ofExports(files) {
  const found = new Map();
  const xmls = files.filter((f) => stands(f) && f.size <= most);
  for (const xml of xmls) {
    const text = await read(() => xml.text());
    if (!text || !text.includes("<HEDX")) continue;
    const urls = [...text.matchAll(/<(?:\w+:)?ExamURL>([^<]*)</g)].map(([, url]) => url.trim().split(/[\\/]/).pop().toLowerCase());
    const names = new Set(urls);
    const own = [xml, ...files.filter((f) => f !== xml && !found.has(f) && names.has(f.name.toLowerCase()))];
    for (const file of own) found.set(file, own);
  }
  return found;
}

// Study and series of a DICOM file with one B-scan; null of any other, and of one that is written in an unusual way.
async function seriesOf(file) {
  const bytes = await read(() => file.slice(0, HEADER).arrayBuffer());
  if (!bytes || bytes.byteLength < 140) return null;
  const view = new DataView(bytes);
  const text = (at, length) => new TextDecoder("latin1").decode(new Uint8Array(bytes, at, length)).replace(/[\0 ]+$/, "");
  if (text(128, 4) !== "DICM") return null;
  const said = {};
  let implicit = false;
  let depth = 0;
  let at = 132;
  try {
    for (;;) {
      const group = view.getUint16(at, true);
      const element = view.getUint16(at + 2, true);
      at += 4;
      if (group === 0xfffe) {
        // Of items the header alone is passed over, and what is in them is gone through.
        const length = view.getUint32(at, true);
        at += 4;
        if (element === 0xe0dd) depth -= 1;
        if (element === 0xe000 && length !== 0xffffffff && depth === 0) return null;
        continue;
      }
      if (group !== 2 && said["2,10"] === undefined) return null;
      implicit = group !== 2 && said["2,10"] === IMPLICIT;
      let length;
      if (implicit) {
        length = view.getUint32(at, true);
        at += 4;
      } else if (LONG.includes(text(at, 2))) {
        length = view.getUint32(at + 4, true);
        at += 8;
      } else {
        length = view.getUint16(at + 2, true);
        at += 4;
      }
      if (depth === 0 && (group > 0x28 || (group === 0x28 && element > 8))) break;
      if (length === 0xffffffff) {
        depth += 1;
        continue;
      }
      if (depth === 0) said[`${group.toString(16)},${element.toString(16)}`] = length <= 64 ? text(at, length) : "";
      if (OTHERS.includes(said["2,10"])) return null;
      at += length;
    }
  } catch {
    return null; // it ends before that, or is none
  }
  const several = said["28,8"] && Number(said["28,8"]) > 1;
  return said["20,e"] && !several ? `${said["20,d"] || ""} ${said["20,e"]}` : null;
}

async function read(how) {
  try {
    return await how();
  } catch {
    return null; // it is gone, which sending it says
  }
}
